"""Model families: each file states only what differs from the building blocks in `tgi_core.layers`."""
