"""Real Kubernetes on one machine, from a bare control plane to a node that runs vLLM pods.

Three sizes, from small to large:

* `control_plane.ControlPlane`: etcd, API server, controllers, scheduler and faked nodes as plain
  processes on loopback. No root needed, up in seconds. Contract tests and benchmarks use it.
* `local.LocalCluster`: the same plus kubelet, containerd, kube-proxy and DNS inside namespaces of
  their own. Needs root on Linux; no Docker, no registry.
* `kind.KindCluster` and `current.CurrentCluster`: the same promises on somebody else's cluster.

Only the standard library is imported, so `python3 -m e2e.cluster` works on a fresh checkout.
"""
