"""Work on several machines: recordings placed by Ray, cameras held by leases."""
