"""Questions with their answers: loaded, compared, and looked for in passages."""
