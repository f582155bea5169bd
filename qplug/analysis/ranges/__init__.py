"""Figures 2 and 3 of Q-MLP for any model: activation ranges along the depth, and Hessian traces of its mixers.

Both are measured before and after a rewrite. ``analyze`` runs the analysis, ``models`` prepares the models, ``depth``
positions the operations, ``activations`` measures the ranges and ``mixing`` the traces.
"""
