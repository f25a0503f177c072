//! Compiles the protos with protox, a protobuf compiler in Rust, so that `protoc` need not be
//! installed.

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let protos = ["payment/v1/payment.proto", "inventory/v1/inventory.proto"];
    for proto in protos {
        println!("cargo::rerun-if-changed=proto/{proto}");
    }
    let descriptors = protox::compile(protos, ["proto"])?;
    // `build_transport(false)`: the generated `connect()` would return a client without layers.
    tonic_prost_build::configure().build_transport(false).compile_fds(descriptors)?;
    Ok(())
}
