"""How long a frame takes, stage by stage, beside how good its mask is."""
