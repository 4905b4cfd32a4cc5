//! Addresses, ports and settings of Services, and what a rejected one keeps.

use super::*;
use crate::object::{Object, read};

fn service(yaml: &str) -> (Service, Vec<String>) {
    let text = format!("apiVersion: v1\nkind: Service\nmetadata: {{name: web, namespace: shop}}\n{yaml}");
    let reading = read("f.yaml", text.as_bytes());
    let invalid = reading.invalid.iter().map(|i| format!("{}: {}: {}", i.line, i.field, i.message)).collect();
    let service = reading.items.into_iter().find_map(|item| match item.object {
        Object::Service(service) => Some(service),
        _ => None,
    });
    (service.expect("a service"), invalid)
}

fn texts<T: ToString>(list: &[T]) -> Vec<String> {
    list.iter().map(ToString::to_string).collect()
}

#[test]
fn every_field_is_read() {
    let (service, invalid) = service(
        "
spec:
  type: LoadBalancer
  clusterIP: 10.96.0.1
  clusterIPs: [10.96.0.1, 'fd00:96::1']
  externalIPs: ['::ffff:203.0.113.1']
  sessionAffinity: ClientIP
  sessionAffinityConfig: {clientIP: {timeoutSeconds: 60}}
  internalTrafficPolicy: Local
  publishNotReadyAddresses: true
  selector: {app: web}
  ports:
  - {name: http, port: 80, targetPort: 8080, appProtocol: http, nodePort: 30080}
  - {name: admin, port: 81, targetPort: admin, protocol: TCP}
  - {name: dns, port: 53, protocol: UDP}
  - {name: dns-tcp, port: 53, protocol: TCP}
status:
  loadBalancer: {ingress: [{ip: 198.51.100.1}, {ip: 198.51.100.2, ipMode: Proxy}, {hostname: lb.example}]}
",
    );
    assert_eq!(invalid, Vec::<String>::new());
    assert_eq!(texts(&service.cluster_ips), ["10.96.0.1", "fd00:96::1"]);
    assert_eq!(texts(&service.vips), ["10.96.0.1", "fd00:96::1", "203.0.113.1", "198.51.100.1"]);
    assert_eq!(service.session_affinity, Some(Duration::from_secs(60)));
    assert!(service.internal_local && service.publish_not_ready && !service.headless && !service.invalid);
    let ports: Vec<String> = service.ports.iter().map(|p| format!("{}={}", p.name, p.port)).collect();
    assert_eq!(ports, ["http=80", "admin=81", "dns-tcp=53"], "TCP only");
    assert_eq!(service.ports[0].app_protocol.as_deref(), Some("http"));
}

#[test]
fn kinds_of_service_table() {
    let table: [(&str, &[&str], bool, usize); 6] = [
        ("spec: {clusterIP: None, ports: [{port: 80}]}", &[], true, 1),
        ("spec: {clusterIPs: [None], ports: [{port: 80}]}", &[], true, 1),
        ("spec: {clusterIP: '', ports: [{port: 80}]}", &[], false, 1),
        ("spec: {clusterIP: 10.96.0.1}", &["10.96.0.1"], false, 0),
        ("spec: {type: ExternalName, externalName: example.com, ports: [{port: 80}]}", &[], false, 0),
        ("", &[], false, 0),
    ];
    for (yaml, vips, headless, ports) in table {
        let (service, invalid) = service(yaml);
        assert_eq!(invalid, Vec::<String>::new(), "{yaml}");
        assert_eq!(
            (texts(&service.vips), service.headless, service.ports.len()),
            (texts(vips), headless, ports),
            "{yaml}"
        );
    }
}

#[test]
fn affinity_defaults_to_three_hours() {
    let (service, _) = service("spec: {sessionAffinity: ClientIP}");
    assert_eq!(service.session_affinity, Some(Duration::from_secs(10_800)));
}

#[test]
fn what_makes_a_service_invalid_table() {
    const OK: &str = "clusterIP: 10.96.0.1";
    let table = [
        ("ports: [{port: 0}]", "4: spec.ports[0].port: 0 is no port: 1 to 65535"),
        ("ports: [{port: 65536}]", "4: spec.ports[0].port: 65536 is no port"),
        ("ports: [{port: -1}]", "4: spec.ports[0].port: -1 is no port"),
        ("ports: [{name: http}]", "4: spec.ports[0].port: is missing"),
        ("ports: [{port: http}]", "4: spec.ports[0].port: must be a whole number, not the text `http`"),
        ("ports: [{port: 80.5}]", "4: spec.ports[0].port: must be a whole number, not the number 80.5"),
        ("ports: [{port: 80, targetPort: 0}]", "4: spec.ports[0].targetPort: 0 is no port"),
        (
            "ports: [{port: 80, targetPort: [1]}]",
            "4: spec.ports[0].targetPort: invalid type: sequence, expected a port number or name",
        ),
        ("ports: [{port: 80, protocol: tcp}]", "4: spec.ports[0].protocol: `tcp` is unknown: `TCP` or `UDP` or `SCTP`"),
        ("ports: [{port: 80, name: a}, {port: 80, name: b}]", "4: spec.ports[1].port: TCP 80 is already spec.ports[0]"),
        ("ports: [{port: 80, name: a}, {port: 81, name: a}]", "4: spec.ports[1].name: `a` is already spec.ports[0]"),
        ("ports: [{port: 80}, {port: 81, name: a}]", "4: spec.ports[0].name: is missing: several ports"),
        ("ports: [{port: 80, name: Web}]", "4: spec.ports[0].name: `Web` is no port name"),
        ("externalIPs: [10.0.0.0/8]", "4: spec.externalIPs[0]: `10.0.0.0/8` is no IP address"),
        ("externalIPs: [169.254.169.254]", "4: spec.externalIPs[0]: 169.254.169.254 is a link-local"),
        ("sessionAffinity: Cookie", "4: spec.sessionAffinity: `Cookie` is unknown"),
        (
            "sessionAffinity: ClientIP, sessionAffinityConfig: {clientIP: {timeoutSeconds: 0}}",
            "4: spec.sessionAffinityConfig.clientIP.timeoutSeconds: 0 is out of range: 1 to 86400",
        ),
        ("internalTrafficPolicy: local", "4: spec.internalTrafficPolicy: `local` is unknown"),
        ("type: Ingress", "4: spec.type: `Ingress` is unknown"),
        ("clusterIPs: [None, 10.96.0.1]", "4: spec.clusterIPs: `None` beside an address"),
        ("publishNotReadyAddresses: 1", "4: spec.publishNotReadyAddresses: must be true or false"),
        ("ports: [{port: 80, port: 81}]", "4: : `port` is there twice, first on line 4"),
    ];
    for (yaml, expected) in table {
        let (service, invalid) = service(&format!("spec: {{{OK}, {yaml}}}"));
        assert_eq!(invalid.len(), 1, "{yaml}: {invalid:?}");
        assert!(invalid[0].starts_with(expected), "{yaml}:\n{}\n{expected}", invalid[0]);
        assert!(service.invalid, "{yaml}");
        assert!(texts(&service.vips).contains(&"10.96.0.1".to_owned()), "its address is refused: {yaml}");
    }
}

#[test]
fn a_port_without_a_usable_number_does_not_hide_the_others() {
    let (service, _) = service("spec: {clusterIP: 10.96.0.1, ports: [{name: a, port: x}, {name: b, port: 81}]}");
    assert_eq!(service.ports.iter().map(|p| p.port).collect::<Vec<_>>(), [81]);
}

#[test]
fn a_service_cut_off_by_a_syntax_error_still_refuses_its_address() {
    let (service, invalid) = service("spec:\n  clusterIP: 10.96.0.1\n  ports:\n  - port: 80\n    name: \"http\n");
    assert!(service.invalid && invalid[0].contains("not YAML"), "{invalid:?}");
    assert_eq!(texts(&service.vips), ["10.96.0.1"]);
    assert_eq!(service.ports.iter().map(|p| p.port).collect::<Vec<_>>(), [80]);
}
