"""A recipe run stage by stage: passes, export, pack, validate, certify, each kept, skipped when nothing changed."""
