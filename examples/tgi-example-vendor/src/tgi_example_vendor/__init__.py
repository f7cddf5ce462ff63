"""example-vendor's devices for tgi."""
