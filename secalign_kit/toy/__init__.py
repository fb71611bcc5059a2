"""The embedded model's world: a small instruct corpus and the pre-training of the shipped model.

    lexicon  the words, names, facts and functions of the world, with those held out for the attacks
    world    task families: clean samples (instruction, data, answer)
    corpus   the pre-training mixture: clean samples, and requests in other places than data
    pretrain tokenizer, model and training from scratch
    card     the model card, its scores measured anew
"""
