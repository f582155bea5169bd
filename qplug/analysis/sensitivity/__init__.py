"""How sensitive each site is: the measures of ``qplug sensitivity``.

``measure`` has the order, ``single`` quantizes one site at a time, ``correlation`` ranks the measures.
"""
