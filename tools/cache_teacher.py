from bdd_seg.cli.cache import main

if __name__ == '__main__':
    main()
