"""From sources to a training set: read → clean → compare → write → tokenise, by blocks, in any number of processes.

recipe    what a person writes                     plan      its work as blocks, and where each result lies
clean     one block through the steps              compare   duplicates, seen over all blocks
write     one block without them                   run       the order of things, resumed where it stopped
executor  who does the blocks: this process, several, a cluster
tally     what every step saw, changed, removed    page      the same for people, with samples and pictures
"""
