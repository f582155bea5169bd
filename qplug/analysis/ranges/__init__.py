"""What Q-MLP's figures show of any model: how wide its activations are along the depth, and which of its mixers are
sensitive, before and after a rewriting.

``run`` has the order, ``subjects`` the models, ``depth`` where operations stand, ``ranges`` and ``mixing`` the figures.
"""
