"""AMD devices for tgi."""
