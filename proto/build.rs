//! Compiles the .proto files with protox: no protoc on the machine.

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let files = [
        "heddle/keeper/v1/keeper.proto",
        "heddle/debug/v1/debug.proto",
        "heddle/ca/v1/ca.proto",
        "istio/v1/auth/ca.proto",
    ];
    for file in files {
        println!("cargo:rerun-if-changed={file}");
    }
    let descriptors = protox::compile(files, ["."])?;
    tonic_prost_build::configure()
        // The debug API speaks JSON over HTTP on a Unix socket; the messages are its schema.
        .type_attribute(".heddle.debug.v1", "#[derive(serde::Serialize, serde::Deserialize)]")
        .type_attribute(".heddle.debug.v1", "#[serde(default)]")
        .build_transport(false)
        .compile_fds(descriptors)?;
    Ok(())
}
