"""The plugin seam: hook specifications, discovery, and the calls to techniques.

``specs`` is the reference manual. ``registry`` finds what is installed, once a process; ``caller`` asks the techniques
of one run.
"""
