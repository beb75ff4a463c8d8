"""Why it helps: feature capacity, cosine similarity, collisions and coverage."""
