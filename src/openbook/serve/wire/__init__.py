"""What comes in and goes out over HTTP, as typed values: the OpenAI API's shapes. One place checks and documents them.

A field that is not here is refused by name; one that is here is honoured, or stands in `basics.NO_OPS`.
"""
