"""What an operation is: frozen records with pure methods, the surveys they ask for, and their plain definition."""
