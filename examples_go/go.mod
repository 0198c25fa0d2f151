module flash_attention/examples_go

go 1.19
