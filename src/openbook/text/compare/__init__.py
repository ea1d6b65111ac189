"""What tokenizers make of text: counts and their cost, and several tokenizers side by side.

counting    documents, bytes, characters, tokens, and what they cost at given prices
words       tokens per word, continued words, what of the vocabulary a text uses, what is lost on the way and back
languages   the same text in many languages: who pays how much more than English
splits      how numbers and code come apart
report      one tokenizer measured in all of these; a table of several, and their JSON
picture     the same as a picture
"""
