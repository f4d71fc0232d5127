"""Where the teacher's distributions come from: a store, or a model at hand."""
