module flash_attention/bindings/go

go 1.19
