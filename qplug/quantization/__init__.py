"""The numeric core: sites, statistics, quantizers, the plan, its costs, and the backends that execute it."""
