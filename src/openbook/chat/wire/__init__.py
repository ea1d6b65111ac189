"""The OpenAI API as a client speaks it: requests out, events and replies in. Only `connection.py` knows HTTP."""
