#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    errand_lab::properties::tool_api(bytes);
});
