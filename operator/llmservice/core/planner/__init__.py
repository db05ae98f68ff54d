"""The memory plan: what fits on a device, what it will serve, and why, before a device is touched.

::

    catalog, config.json, architecture ──> model.ModelShape ──> weights.weights_of
    gpu facts                          ──> devices.Device   ──> overhead.overhead
    knobs, vLLM version                ──> plan.plan        ──> kv_cache.Pool
                                             |
                                             v
                               Plan | Infeasible | Unplanned

Everything is bytes of one device unless it says otherwise. Given the bytes that are left for the
KV cache, :mod:`kv_cache` is exact: it is vLLM's own allocator as closed forms. The overhead is an
estimate with a range, so a plan says "fits" only where the pessimistic end of the range does.
"""
