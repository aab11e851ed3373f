"""Jobs on their way in: handed over, refused, kept to a bounded number, asked after, called off."""
