"""Using a trained model: new signals, completions, morphs, and files of codes."""
