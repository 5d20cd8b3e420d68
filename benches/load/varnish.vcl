# What the gateway is compared with: Varnish, once past its cache and once from its memory.
vcl 4.1;

backend default {
    .host = "127.0.0.1";
    .port = "@UPSTREAM@";
}

sub vcl_recv {
    if (req.url ~ "^/plain/") {
        return (pass);
    }
    return (hash);
}

sub vcl_backend_response {
    set beresp.ttl = 1h;
}
