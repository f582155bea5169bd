"""How much each site suffers: the allocators' SQNR table (``table``), and the measures of ``qplug sensitivity``.

``measure`` has the order, ``single`` quantizes one site at a time, ``hessian`` estimates traces, ``correlation`` ranks.
"""

from qplug.sensitivity.table import SqnrTable

__all__ = ["SqnrTable"]
