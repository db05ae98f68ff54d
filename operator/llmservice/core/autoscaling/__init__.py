"""When a service gets more replicas and when fewer, and what that costs on a trace.

::

    engine gauges, data path ──> policy.View ──> policy: metrics with targets, behavior
                                                    |
                                                    v
                                hpa.HpaController, the algorithm of the Kubernetes HPA
                                                    |
    trace ──> simulation.simulate <──── replicas ───┘      peers: the same seat, others' rules

In a cluster the Kubernetes HPA controller decides; :mod:`hpa` is that algorithm as a value, so that
the policy can be judged on a trace before any HPA exists. Times are seconds from the start of a
trace. Nothing here reads a clock or a random number: one trace and one policy give one result.
"""
