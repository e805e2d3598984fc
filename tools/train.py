from bdd_seg.cli.train import main

if __name__ == '__main__':
    main()
