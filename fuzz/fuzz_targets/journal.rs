#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    errand::fuzzing::journal(bytes);
});
