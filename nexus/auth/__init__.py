"""Who may serve what: tokens verified and made, claims read, and the grant that results."""
