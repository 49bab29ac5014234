"""What an operation is: frozen records with pure methods, their surveys, and their plain definition."""
