"""What a router's Envoy is told: from the traffic that is wanted to files, and their order.

Pure: it knows neither a folder nor a running Envoy. :mod:`llmservice.adapters.route_files` writes
the files and asks Envoy which version it took.
"""
