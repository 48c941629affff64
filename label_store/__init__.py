"""Ground floor: where soft labels are kept, so that each is computed once."""
