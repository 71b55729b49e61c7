"""From what users have (pictures, recordings, texts, tables) to arrays named like a model's inputs."""
