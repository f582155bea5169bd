"""Sensitivity of each site: the measures of ``qplug sensitivity``.

``measure`` runs the measurements, ``single`` quantizes one site at a time, ``correlation`` correlates the measures.
"""
