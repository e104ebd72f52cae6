"""Web access to a running pipeline: metrics, the HTTP API and the page."""
