"""What a run has trained, put to use: as an ordinary checkpoint of other tools, or asked here."""
