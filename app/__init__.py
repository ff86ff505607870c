"""Everything around a run that is safe in every host."""
