"""What a service says of itself while it runs: metrics, traces and logs of routers and of the controller."""
