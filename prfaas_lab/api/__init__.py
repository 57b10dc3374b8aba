"""The door for other programs: an OpenAI-compatible HTTP endpoint, Prometheus metrics, live control."""
