"""Operations on whole stores: copy, convert, jobs, edit, verify, diff, estimate."""
