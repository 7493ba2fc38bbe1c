//! Ceilings: every limit that is not a setting has its name here.
