"""The three ways to cut a word into tokens, as short code to read: byte-pair encoding, WordPiece, Unigram.

    bpe.py         start from characters, join the most frequent neighbours     Sennrich et al. 2016
    wordpiece.py   the longest token first                                      Schuster & Nakajima 2012
    unigram.py     the most probable cut of all                                 Kudo 2018
    whole.py       the algorithm of a tokenizer that is there, and its words
    sampling.py    other cuts than the best one, drawn anew each time, to train with

Each holds the training and the encoding of one *word*: what the split before it (a pattern, spaces) leaves whole. They
give the ids and the merges of the fast path, which is a law (tests/laws/test_algorithms.py), and of this order of ties:
the pair with the smallest ids is merged first; the leftmost pair of a rank is joined first; of two equally probable
cuts of a text up to some place, the one whose last token is longer is kept.
"""
