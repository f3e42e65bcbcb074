"""The portable graph: nodes, facts, and a numpy reference for every operator."""
