"""What makes the papers' tables: variants with several seeds, claims, candidates and cards."""
