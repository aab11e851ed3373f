"""The service's side of the protocol, for routers and replicas: what is due, how jobs end, and writing answers."""
