"""The feature store: schema, shards, ledger, reading at memory speed.  No torch, no CLIP."""
