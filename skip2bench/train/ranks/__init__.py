"""Several processes of one run: started and watched, what they tell each other, sharded blocks."""
