"""Files of many kinds → documents: finding them, parting them into blocks, unpacking, reading, listing what is bad.

    paths ──find_files──▶ files ──blocks──▶ Block … ──read_block──▶ Document …      and Bad …, when a list is kept

One module per kind of file, each one function of an opened `Source` (see `stream.py`); `kinds.py` says which name is
read by which. A new kind is a module here and a line there. The usual way in is `openbook.data.documents`.
"""
